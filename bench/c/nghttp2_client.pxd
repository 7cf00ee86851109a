"""nghttp2: the client's side of what fastpath.c.nghttp2 declares for the server."""
from fastpath.c.nghttp2 cimport (
    nghttp2_data_provider, nghttp2_nv, nghttp2_option, nghttp2_session, nghttp2_session_callbacks,
)
from libc.stdint cimport int32_t, uint32_t


cdef extern from "nghttp2/nghttp2.h" nogil:
    int NGHTTP2_SETTINGS_ENABLE_PUSH, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    int nghttp2_session_client_new2(
        nghttp2_session **made, const nghttp2_session_callbacks *callbacks, void *user_data,
        const nghttp2_option *option)
    int32_t nghttp2_submit_request(
        nghttp2_session *session, const void *priority, const nghttp2_nv *headers, size_t n,
        const nghttp2_data_provider *body, void *stream_user_data)
    uint32_t nghttp2_session_get_remote_settings(nghttp2_session *session, int id)
