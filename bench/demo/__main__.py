"""`python -m bench.demo`. Takes charge of Ctrl-C before anything else is loaded, so that it never ends in a traceback."""

from bench.demo.interrupt import Interrupt

if __name__ == "__main__":
    interrupt = Interrupt()
    from bench.demo.cli import main

    main(obj=interrupt)
