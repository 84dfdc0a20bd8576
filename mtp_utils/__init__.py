"""What the notebooks of the multi-token prediction companion share.

Importing the package costs nothing: no model, no device and no download before a function asks for it.
"""

__version__ = "0.1.0"
