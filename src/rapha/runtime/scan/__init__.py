"""Static analysis of what a submitter added to a runtime: advice about intent, before the sandbox."""

from rapha.runtime.scan.process import run_in_process
from rapha.runtime.scan.provided import Provided
from rapha.runtime.scan.report import Finding, ScanReport, refusals, sarif, sbom
from rapha.runtime.scan.rules import RuleSet, default_rules, parse_rules
from rapha.runtime.scan.scanner import scan

__all__ = [
    "Finding",
    "Provided",
    "RuleSet",
    "ScanReport",
    "default_rules",
    "parse_rules",
    "refusals",
    "run_in_process",
    "sarif",
    "sbom",
    "scan",
]
