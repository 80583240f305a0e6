"""What surrounds a training: device and processes, checkpoints, memory, folders, and the notebooks'
stages.
"""
