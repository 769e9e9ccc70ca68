"""Runs jobs: a Celery process claims them, and a supervised child process runs core. The parent never loads torch."""
