"""Assignment and losses: raw outputs and targets to named terms."""
