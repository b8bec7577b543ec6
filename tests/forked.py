"A process forked from this one, with all that it has imported: what a test kills, limits or stops."
import os, signal, time, traceback

def forked(fn):
    "Fork a process that calls `fn()`; its number. It ends with what `fn` returns, after an error with 99."
    pid = os.fork()
    if pid: return pid
    code = 99
    try: code = fn() or 0
    except BaseException: os.write(2, traceback.format_exc().encode())
    finally: os._exit(code)

def ended(pid, timeout=120):
    "The exit status of a process, a signal as a negative number"
    late = time.monotonic() + timeout
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > late: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); raise AssertionError(f'process {pid} hangs')
        time.sleep(.005)
    return os.waitstatus_to_exitcode(done[1])

def killed(pid): os.kill(pid, signal.SIGKILL); assert ended(pid) == -signal.SIGKILL

def killed_in_the_middle(load, tag, batch):
    "Run `tag(load())` in a process that is killed as soon as its tagger comes to batch number `batch`, counted from 1."
    here, there = os.pipe()
    def job():
        t = load()
        real, n = t.score_images, [0]
        def slow(x):
            n[0] += 1
            if n[0] == batch: os.write(there, b'now'); time.sleep(60)
            return real(x)
        t.score_images = slow
        tag(t)
    p = forked(job); os.close(there)
    assert os.read(here, 3) == b'now'
    killed(p); os.close(here)
