"""The one-page report of a finished job, for people who were not there."""

from rapha.researcher.report.lines import GateLine
from rapha.researcher.report.render import render

__all__ = ["GateLine", "render"]
