"""What the pack promises, tried at length: one file per question, one command (`bash scripts/stress.sh`), one
table."""
