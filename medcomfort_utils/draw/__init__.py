"""What `04_figures` calls: style, plots and tables. Reads result files only."""
