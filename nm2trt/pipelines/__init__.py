"""One module per stage: typed configuration in, document out. The only code that joins two stages."""
