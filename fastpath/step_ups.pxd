"""The newest STEP_UP answers, for whoever asks for an approval of one by its evaluation id."""
from fastpath.live_state cimport LiveState, Standing
from fastpath.request cimport Request
from fastpath.value cimport Arena
from fastpath.wire cimport Text


# Room for them; NULL when there is no memory.
cdef void *step_ups_new() noexcept nogil
cdef void step_ups_free(void *step_ups) noexcept nogil
# Remember a STEP_UP; with `emergency` a DENY that only an emergency approval crosses.
cdef void authority_note_step_up(
    LiveState *live, const Request *request, const char *evaluation, Text reason, bint emergency, Arena *arena,
    Standing *standing
) noexcept nogil
# What is remembered under an evaluation id, as fastpath.authority.Live.step_up documents it, or None.
cdef object step_up_of(const LiveState *live, bytes evaluation)
