"""`python -m ezxmc`, and so `torchrun -m ezxmc train`: the `ezxmc` program."""

from ezxmc.cli.app import main

if __name__ == "__main__":
    main()
