"""jansson 2.14: the JSON parser that refuses duplicate keys (jansson.readthedocs.io/en/2.14/apiref.html)."""


cdef extern from "jansson.h" nogil:
    ctypedef enum json_type:
        JSON_OBJECT, JSON_ARRAY, JSON_STRING, JSON_INTEGER, JSON_REAL, JSON_TRUE, JSON_FALSE, JSON_NULL
    enum json_error_code:
        json_error_out_of_memory
        json_error_duplicate_key
    ctypedef struct json_t:
        pass
    ctypedef struct json_error_t:
        pass
    size_t JSON_REJECT_DUPLICATES
    void json_object_seed(size_t seed)
    json_t *json_loadb(const char *buffer, size_t buflen, size_t flags, json_error_t *error)
    json_error_code get_error "json_error_code" (const json_error_t *error)
    void json_decref(json_t *json)
    json_type json_typeof(const json_t *json)
    size_t json_object_size(const json_t *object)
    void *json_object_iter(json_t *object)
    void *json_object_iter_next(json_t *object, void *iter)
    const char *json_object_iter_key(void *iter)
    size_t json_object_iter_key_len(void *iter)
    json_t *json_object_iter_value(void *iter)
    size_t json_array_size(const json_t *array)
    json_t *json_array_get(const json_t *array, size_t index)
    const char *json_string_value(const json_t *string)
    size_t json_string_length(const json_t *string)
    long long json_integer_value(const json_t *integer)
    double json_real_value(const json_t *real)
