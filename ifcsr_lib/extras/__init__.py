"""What is not from the paper and plugs into it from outside."""
