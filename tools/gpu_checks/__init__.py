"""What tools/gpu.py is made of.

report.py   promises, verdicts, the JSON file, the table
run.py      the budget, subprocesses, stages side by side
package.py  the compiled package that is tested: found, or built
suite.py    pytest on the device (record.py is its plugin)
outside.py  compute-sanitizer and ncu: command lines, and what their output says
cases.py    what is measured: shapes, strides, bytes that must move
measure.py  times: bandwidth against a copy, a training step against eager and torch.compile
driver.py   programs that run alone, some of them under one of those tools
"""
