"""Does RAFT with features of a restoration transformer beat the same RAFT fine-tuned on the same degraded clips?

    python -m benchmarks.degradation_aware --out runs/experiment --quick
    python -m benchmarks.degradation_aware --out runs/experiment --max-minutes 60

Decided before any run, on the mean end-point error over the degraded levels of held-out clips:

    Success = V3 is better than V2 *and* V2+ *and* V4, the 95 % interval of each difference excluding 0.
    Anything else is reported as "no benefit at this scale".

| variant | |
|---|---|
| V1 | RAFT-small trained on undegraded clips: where all others start |
| V2 | V1 fine-tuned on degraded clips |
| V2+ | V2 with more steps: as much time as V3 takes |
| V3 | V1 with features of the lifted restoration transformer, fine-tuned as V2 |
| V4 | V3 with a transformer of random weights: capacity alone |
| V5 | V3 with a transformer that sees one frame at a time, trained for as many steps |
| V6 | V1 on frames restored by the lifted transformer |

V2 to V5 see the same clips in the same order for the same number of steps (V2+ goes on). All transformers are frozen
while a flow network is trained. Seeds differ in the clips, their order and the new weights of V2 to V5; V1 and the
transformers are trained once.
"""

SUCCESS = (
    "V3 better than V2 and V2+ and V4 in mean end-point error over the degraded levels, the 95 % interval of each "
    "difference excluding 0"
)
FAILURE = "no benefit at this scale"
