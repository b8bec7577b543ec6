#!/usr/bin/env python3
"""nbdev's processing of notebooks for the docs into _proc, without asking for Quarto:  nbproc [FOLDER]"""
import sys
from nbdev.serve import proc_nbs

# one process: importing what the notebooks import takes longer than the work
if __name__ == '__main__': proc_nbs(sys.argv[1] if len(sys.argv) > 1 else '', n_workers=0, force=True)
