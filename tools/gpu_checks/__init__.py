"""The parts of tools/gpu.py.

These run without torch and without the package, in the process that a user starts:

report.py     promises, verdicts, the folder of results, the table
schedule.py   steps in turn, each with its share of the budget
processes.py  commands with a time limit and a log; supervise.py ends them with this process
steps.py      the steps of a run and their order
bundle.py     the files that are prepared on a machine without a GPU
package.py    the compiled package under test: bundled, installed, or built in the background
machine.py    GPU, driver, clocks, versions
probe.py, ncu.py, sanitizer.py, suite.py    how to call each program and parse its output
judge.py      verdicts on measured times

These run in child processes:

plugin.py     the pytest plugin: it records results, and xdist replaces processes that die
driver.py     programs that use the package; cases.py, likelihoods.py and measure.py
             are their parts
"""
