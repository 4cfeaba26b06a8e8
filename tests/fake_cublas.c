/* Stands in for cuBLAS: the functions that minires calls, with their arguments as documented, in plain loops. */

#include <stddef.h>
#include <string.h>

static int created;
static void *stream, *workspace;
static size_t workspace_bytes;
static int last_compute;

int cublasCreate_v2(void **handle) { created++; *handle = &created; return 0; }
int cublasSetStream_v2(void *handle, void *to) { stream = to; workspace = 0; return handle != &created; }
int cublasSetWorkspace_v2(void *handle, void *place, size_t bytes) {
    workspace = place;
    workspace_bytes = bytes;
    return handle != &created;
}

enum { FLOAT = 0, DOUBLE = 1, BFLOAT16 = 14 }; /* cudaDataType_t */

static double get(const void *matrix, int type, size_t at) {
    if (type == BFLOAT16) {
        unsigned bits = (unsigned)((const unsigned short *)matrix)[at] << 16;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    return type == FLOAT ? ((const float *)matrix)[at] : ((const double *)matrix)[at];
}

static void set(void *matrix, int type, size_t at, double value) {
    float narrow = value;
    if (type == BFLOAT16) { /* to the nearest, from halfway to even; there is no NaN here */
        unsigned bits;
        memcpy(&bits, &narrow, 4);
        ((unsigned short *)matrix)[at] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else if (type == FLOAT) ((float *)matrix)[at] = narrow;
    else ((double *)matrix)[at] = value;
}

/* C = alpha op(A) op(B) + beta C, all by columns: op(A) is m x k, op(B) is k x n. Status 7: a bad value. */
int cublasGemmEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a,
                 int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c,
                 int ldc, int compute, int algorithm) {
    if (handle != &created || !stream || !workspace || algorithm != -1) return 1;
    if (lda < (turn_a ? k : m) || ldb < (turn_b ? n : k) || ldc < m) return 7;
    if (type_a != type_b || (type_a == DOUBLE) != (compute == 70)) return 7;
    if (type_a != type_c && !(type_a == BFLOAT16 && type_c == FLOAT)) return 7;
    if (type_a == BFLOAT16 && compute != 68) return 7;
    int type_scalar = type_a == DOUBLE ? DOUBLE : FLOAT;
    double factor = get(alpha, type_scalar, 0), keep = get(beta, type_scalar, 0);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += get(a, type_a, turn_a ? l + (size_t)i * lda : i + (size_t)l * lda) *
                       get(b, type_b, turn_b ? j + (size_t)l * ldb : l + (size_t)j * ldb);
            size_t at = i + (size_t)j * ldc;
            double before = keep ? keep * get(c, type_c, at) : 0;
            set(c, type_c, at, factor * sum + before);
        }
    last_compute = compute;
    return 0;
}

int fake_last_compute(void) { return last_compute; }
int fake_created(void) { return created; }
size_t fake_workspace_bytes(void) { return workspace_bytes; }
