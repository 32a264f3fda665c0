"""Dense prediction: maps of depth, normals or colours that belong to pictures. Their files, encodings and metrics.

No networks here; the training of such maps is in ``training/``, the commands in ``commands/dense.py``.
"""
