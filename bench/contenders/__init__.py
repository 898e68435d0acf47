"""The ways to get a sandbox that are measured against one another; `contract.Contender` is what they share."""
