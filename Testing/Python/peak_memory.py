"""The most memory that a process of a test's own has held; Linux alone."""

# An expression for its script. Not ru_maxrss, which begins at what the process that started it had held by then.
PEAK_MEMORY = 'int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024'

REASON = "/proc is Linux's"
