"""`python -m concept_erase` is the command line."""

from concept_erase.cli import run

if __name__ == "__main__":
    run()
