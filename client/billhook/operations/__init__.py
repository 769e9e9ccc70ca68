"""What can be done with a server, each once: generators that both clients perform (see `billhook/steps.py`)."""
