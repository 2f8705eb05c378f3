"""Files: reading, writing, checks at the edge."""

import logging

# tifffile speaks of damaged files on the terminal; they are refused in a line of our own
logging.getLogger("tifffile").addHandler(logging.NullHandler())
