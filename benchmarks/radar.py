#!/usr/bin/env python3
"""A simulated recording with its spectrogram: against the clock of the recording, and against the loop of the published ports.

  python benchmarks/radar.py [--seconds 5] [--share 10] [--users 4] [--json]
Peer: our port of what the published simulators do (cidcom/human-walking-radar-simulator, Chen's MATLAB companion): for every
sample and every segment of the body NumPy calls on three coordinates, then a transform of each frame in a loop. It is given the
joints, which those programs also compute point by point. It does one in `share` of the samples. Both sides give the same samples.
"""
import tempfile
from pathlib import Path
import numpy as np
from common import Bench, best_of
from vaetag_nb.data.radar import Radar, Stft, Walker, echo, joints, simulate_dataset, spectrogram
from vaetag_nb.data.walker import JOINTS, SEGMENTS

W, RADAR = Walker(1.8, 1.4), Radar()

def loop_echo(P, at):
    "The echo of joints (n, 17, 3), sample by sample and segment by segment"
    s = np.zeros(len(P), complex)
    for i, p in enumerate(P):
        for a, b, r in SEGMENTS:
            a, b = p[JOINTS.index(a)], p[JOINTS.index(b)]
            sight, axis = (a + b)/2 - at, b - a
            R, L = np.linalg.norm(sight), np.linalg.norm(axis)
            theta, c = np.arccos(np.dot(axis, sight)/(R*L)), L/2
            rcs = np.pi*r**4*c**2/(r**2*np.sin(theta)**2 + c**2*np.cos(theta)**2)**2
            s[i] += np.sqrt(rcs)*np.exp(-1j*4*np.pi*R/RADAR.wavelength_m)
    return s

def loop_spectrogram(s, M=160, hop=40, nfft=256):
    w, columns = .5 - .5*np.cos(2*np.pi*np.arange(M)/M), []
    for m in range((len(s) - M)//hop + 1): columns.append(np.fft.fftshift(np.fft.fft(s[m*hop:m*hop + M]*w, nfft))[::-1])
    db = 20*np.log10(np.maximum(abs(np.array(columns).T)/w.sum(), 1e-12))
    return np.clip(db - db.max(), -45, 0)

def main():
    b = Bench(__doc__, repeats=3, seconds=5., share=10, users=4)
    start = 3 + W.speed_mps*b.seconds
    at, n = np.array([start, 0, RADAR.height_m]), round(b.seconds*RADAR.prf_hz)
    P = joints(W, np.arange(n)/RADAR.prf_hz)
    part = P[:n//b.share]
    ours = lambda: spectrogram(echo(W, RADAR, b.seconds), stft=Stft())
    peer = lambda: loop_spectrogram(loop_echo(part, at))
    rec = echo(W, RADAR, b.seconds)
    np.testing.assert_allclose(rec.iq[:len(part)], loop_echo(part, at), atol=1e-8)
    np.testing.assert_allclose(spectrogram(rec.iq[:len(part)], RADAR.prf_hz, RADAR.fc_hz).db, peer(), atol=1e-4)
    b.duel(f'a recording of {b.seconds:g} s with its spectrogram', ours, peer, unit='recording', peer_name='loop', scale=b.share)
    t = best_of(dict(ours=ours), b.repeats)['ours']
    b.say(f'real time: {b.seconds/t:.0f}x, {1/t:.1f} recordings a second of processor time ({t*1e3:.0f} ms each, promised at most 100' + (' MISSED' if t > .1 else '') + ')')
    b.add('real time', b.seconds/t, ours=t, unit='recording', target=b.seconds/.1)
    with tempfile.TemporaryDirectory() as d:
        made, k = [], iter(range(10**6))
        def whole(): made.append(simulate_dataset(Path(d)/str(next(k)), b.users, seconds=b.seconds))
        t = best_of(dict(ours=whole), 1)['ours']/made[0]['recordings']
    b.say(f'a set with its files: {b.seconds/t:.0f}x real time, {t*1e3:.0f} ms a recording; the default of 310: {310*t:.0f} s (promised at most 60' + (' MISSED' if 310*t > 60 else '') + ')')
    b.add('a set with its files: real time', b.seconds/t, ours=t, unit='recording', target=None)
    b.done()

if __name__ == '__main__': main()
