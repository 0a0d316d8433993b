"""`python -m rapha`."""

from rapha.cli.main import main

main()
