"""`python -m nm2trt` is the same program as `nm2trt`."""

from nm2trt.cli.main import main

main()
