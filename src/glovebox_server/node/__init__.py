"""Does, on one machine: owns the running instances and the guest links."""
