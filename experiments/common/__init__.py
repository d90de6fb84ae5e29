"""Parts that every command shares: run folders, settings, splits, ablations, tables, plots and pages."""
