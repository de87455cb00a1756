"""What `01_rewrite` calls: sources, the synthetic clinic, rewriters and gates."""
