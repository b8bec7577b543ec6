"""What the benchmarks share: two sides take turns on the same data, the best run of each counts, a ratio is printed.

    b = Bench(__doc__, images=64)                 # command line flags: --images N, --repeats N, --json
    b.duel('decode and resize', ours, peer, items=64, unit='image', target=2.5, peer_name='Pillow')
    b.done()

Times are CPU time of this process and its ended children, so that a busy machine disturbs little; `clock='wall'` where what
counts is the time on the clock. Each benchmark asserts equal results before it calls `duel`.
"""
import argparse, json, resource, sys, time

def cpu()->float:
    "Seconds of processor time of this process, all its threads, and its ended children"
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime

CLOCKS = dict(cpu=cpu, wall=time.perf_counter)

def best_of(sides, repeats, clock='cpu')->dict: # {name: seconds}
    "The best time of each of `sides` {name: function}; they take turns, so that a slow minute meets all of them."
    now, best = CLOCKS[clock], dict.fromkeys(sides, float('inf'))
    for _ in range(repeats):
        for name, f in sides.items():
            t = now(); f(); best[name] = min(best[name], now() - t)
    return best

def si(s)->str:
    "Seconds in words"
    for unit, k in [('s', 1), ('ms', 1e3), ('us', 1e6)]:
        if s*k >= 1: return f'{s*k:.3g} {unit}'
    return f'{s*1e9:.3g} ns'

class Bench:
    "One run of a benchmark script: its flags as attributes, its results as lines or, with `--json`, as one object."
    def __init__(self, doc, repeats=5, **flags):
        p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        for k, v in dict(flags, repeats=repeats).items(): p.add_argument('--' + k.replace('_', '-'), type=type(v), default=v)
        p.add_argument('--json', action='store_true')
        self.__dict__ |= vars(p.parse_args())
        self.results = []

    def say(self, text): print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def add(self, name, ratio, **more):
        "Note a result; `more` holds the figures behind it"
        self.results.append(dict(name=name, ratio=round(ratio, 2), **more))

    def duel(self, name, ours, peer, items=1, unit='item', target=None, peer_name='peer', clock='cpu', repeats=None, scale=1)->float:
        "Time both, print `name: ratio x (ours .., peer ..)` and return the ratio; the peer does one in `scale` of the items."
        t = best_of(dict(ours=ours, peer=peer), repeats or self.repeats, clock)
        o, p = t['ours']/items, t['peer']*scale/items
        goal = '' if target is None else f', promised {target:g}x' + ('' if p/o >= target else ' MISSED')
        self.say(f'{name}: {p/o:.1f}x (ours {si(o)}, {peer_name} {si(p)} per {unit}, {clock} time{goal})')
        self.add(name, p/o, ours=o, peer=p, peer_name=peer_name, unit=unit, clock=clock, target=target)
        return p/o

    def done(self):
        if self.json: print(json.dumps(self.results))
