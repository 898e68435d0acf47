"""The envd messages: generated from the .proto files here by `make proto`."""
