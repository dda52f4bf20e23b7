"""The parts of tools/gpu.py.

Without torch and without the package, in the process that a user starts:

report.py     promises, verdicts, the folder of results, the table
schedule.py   steps in turn, each with its share of the budget
processes.py  commands with a time limit and a log; supervise.py ends them with their parent
steps.py      the steps of a run and their order
bundle.py     what is prepared on a machine without a GPU
package.py    the compiled package under test: bundled, installed, or built in the background
machine.py    GPU, driver, clocks, versions
probe.py, ncu.py, sanitizer.py, suite.py    how each program is called, and what its output says
judge.py      verdicts on measured times

In child processes:

plugin.py     the plugin of pytest: a record of results, and processes that are replaced
driver.py     programs that use the package; cases.py, likelihoods.py and measure.py
             are their parts
"""
