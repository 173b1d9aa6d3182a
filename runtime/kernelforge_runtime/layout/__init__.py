"""Where a tensor's elements lie in memory: layouts, what can be done to them, and repacking.

An axis of a tensor is counted by one or several digits, as 137 minutes are by hours and minutes,
and each digit has its own stride: so a matrix can lie row by row, or in tiles, or in tiles of
tiles. Layouts count elements and know nothing of their type: packed formats are moved as words.
Which layout a kernel wants is said by its name, a line that says how memory is nested, slowest
first; `/` divides an axis' index, `%` takes what the division leaves:

    M K                      row-major
    K M                      column-major
    M/32 K/8 M%32 K%8        tiles of 32 x 8, themselves row-major, in rows of tiles
    M K+1                    rows that start one element later than they must: fewer bank conflicts
"""

from kernelforge_runtime.layout.digits import LayoutError, Mode
from kernelforge_runtime.layout.layout import Layout
from kernelforge_runtime.layout.transform import Moves, transform

__all__ = ["Layout", "LayoutError", "Mode", "Moves", "transform"]
