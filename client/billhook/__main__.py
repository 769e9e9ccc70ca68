from billhook.cli.app import run

run()
