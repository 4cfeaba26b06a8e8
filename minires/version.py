"""The version, and the name under which pip knows this package; both are written here and nowhere else.

On PyPI the name ``minires`` belongs to another project: what pip installs by it is somebody else's code.
"""

__version__ = "0.2.0.dev0"
DISTRIBUTION = "minires-engine"
