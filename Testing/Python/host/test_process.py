"""qt.QProcess as modules use it, with Slicer's own Python started by its launcher."""

import os

import qt
import slicer


def wait_until(condition, seconds=20.0):
    """Process events until a condition is true."""
    timer = qt.QElapsedTimer()
    timer.start()
    while not condition() and timer.elapsed() < seconds * 1000:
        slicer.app.processEvents()
    assert condition()


def test_process_exchanges_data_and_ends(slicer_app):
    output, ended = bytearray(), []
    process = qt.QProcess()
    process.connect("readyReadStandardOutput()", lambda: output.extend(process.readAllStandardOutput().data()))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ended.append((code, status)))
    environment = slicer.app.startupEnvironment()
    environment.insert("GREETING", "grüß")
    process.setProcessEnvironment(environment)
    launcher = os.path.join(slicer.app.slicerHome, "bin", "PythonSlicer")
    answer = "sys.stdout.buffer.write((os.environ['GREETING'] + sys.stdin.readline()).encode())"
    process.start(launcher, ["-c", f"import os, sys; {answer}; sys.exit(3)"])
    assert process.waitForStarted()
    process.write(b" dich\n")
    wait_until(lambda: ended)
    assert output.decode() == "grüß dich\n"
    assert ended == [(3, qt.QProcess.NormalExit)]


def test_missing_program_is_reported(slicer_app):
    errors = []
    process = qt.QProcess()
    process.connect("errorOccurred(QProcess::ProcessError)", errors.append)
    process.start("/no/such/program", [])
    wait_until(lambda: errors)
    assert errors == [qt.QProcess.FailedToStart]
