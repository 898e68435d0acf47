"""The guest agent: inside the sandbox, standard library only, Python 3.9+; imports nothing of ours."""
