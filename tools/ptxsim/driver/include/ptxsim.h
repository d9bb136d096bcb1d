/* What libcuda.so.1 of ptxsim exports beside the CUDA driver API. Programs that also run on real GPUs look these up with
 * dlsym and do without where they are missing. */
#ifndef PTXSIM_H
#define PTXSIM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Waits for all submitted work. Then writes, as JSON ended by a NUL, what was recorded since the last reset, if `capacity`
 * bytes hold it; `out` may be NULL. Returns the bytes needed, the NUL included (0 after an internal error).
 *
 *   { "gpu": "a100", "devices": 1,
 *     "launches":    [ { "device": 0, "kernel": ..., "grid": [x,y,z], "block": [x,y,z], "fault": null | {...},
 *                        "reports": [...], "found": {kind: n}, "counters": {...}, "output": "...", "seconds": s,
 *                        "occupancy_model": {...}, "roofline_model": {...} } ],   (the first 4096 launches)
 *     "kernels":     { name: { "launches": n, "faults": n, "counters": {...}, "found": {...}, ... } },
 *     "reports":     [ findings outside launches, such as leaks ],
 *     "found":       { kind: n },
 *     "unsupported": { function, option or instruction: n },
 *     "calls":       { function: n } }
 */
size_t ptxsim_report_json(char *out, size_t capacity);

/* Waits for all submitted work, then forgets what was recorded and starts the counts of PTXSIM_FAIL anew. */
void ptxsim_reset(void);

#ifdef __cplusplus
}
#endif
#endif
