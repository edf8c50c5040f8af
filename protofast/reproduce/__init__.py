"""The papers' experiments as one grid, and the page that says what came out."""

from protofast.reproduce.grid import Cell, Grid
from protofast.reproduce.page import write_page
from protofast.reproduce.plan import Plan, load_plan, plans

__all__ = ["Cell", "Grid", "Plan", "load_plan", "plans", "write_page"]
