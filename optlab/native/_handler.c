/* The function that XLA calls: it divides the arrays of many leaves into chunks, and lets the
   threads of XLA's pool run a generated loop on them.

   A call has the scalars first, then the arrays of each leaf. It returns the arrays of each leaf,
   then one array (leaves,) for each reduction. Sums of chunks are added in the order of the chunks,
   so that no result depends on the number of threads. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum { CHUNK = 32768, BUCKETS = 1024, KEY = 32 };

/* begin, end, arrays read, arrays written, scalars, constants, reduced values of the chunk */
typedef void Loop(int64_t, int64_t, void *const *, void *const *, void *const *, const double *,
                  double *);

typedef struct Entry {
  struct Entry *next;
  char key[KEY];
  Loop *loop;
} Entry;

static Entry *buckets[BUCKETS];

static unsigned bucket_of(const char *key) {
  unsigned hash = 2166136261u;
  for (int i = 0; i < KEY; i++) hash = (hash ^ (unsigned char)key[i]) * 16777619u;
  return hash % BUCKETS;
}

static Loop *find(const char *key) {
  Entry *entry = __atomic_load_n(&buckets[bucket_of(key)], __ATOMIC_ACQUIRE);
  while (entry && memcmp(entry->key, key, KEY)) entry = entry->next;
  return entry ? entry->loop : NULL;
}

/* Make a loop known under the 32 characters of its key. The caller holds a lock. */
int optlab_register(const char *key, Loop *loop) {
  if (find(key)) return 0;
  Entry *entry = malloc(sizeof *entry);
  if (!entry) return 1;
  Entry **bucket = &buckets[bucket_of(key)];
  memcpy(entry->key, key, KEY);
  entry->loop = loop;
  entry->next = *bucket;
  __atomic_store_n(bucket, entry, __ATOMIC_RELEASE);
  return 0;
}

typedef struct Job {
  Loop *loop;
  int64_t leaves, inputs, outputs, reductions, chunks;
  const double *constants;
  void **scalars, **in, **out; /* in: (leaves, inputs), out: (leaves, outputs) */
  int64_t *sizes, *first;      /* elements of each leaf, and the number of its first chunk */
  double *partial;             /* (chunks, reductions) */
  int64_t next, done;
  int references;
  pthread_mutex_t lock;
  pthread_cond_t all_done;
} Job;

static void run_chunk(Job *job, int64_t chunk) {
  int64_t low = 0, high = job->leaves - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (job->first[middle] <= chunk) low = middle; else high = middle - 1;
  }
  int64_t begin = (chunk - job->first[low]) * CHUNK, end = begin + CHUNK;
  if (end > job->sizes[low]) end = job->sizes[low];
  job->loop(begin, end, job->in + low * job->inputs, job->out + low * job->outputs, job->scalars,
            job->constants, job->partial + chunk * job->reductions);
}

static void work(Job *job) {
  for (;;) {
    int64_t chunk = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (chunk >= job->chunks) return;
    run_chunk(job, chunk);
    if (__atomic_add_fetch(&job->done, 1, __ATOMIC_ACQ_REL) == job->chunks) {
      pthread_mutex_lock(&job->lock);
      pthread_cond_signal(&job->all_done);
      pthread_mutex_unlock(&job->lock);
    }
  }
}

static void release(Job *job) {
  if (__atomic_sub_fetch(&job->references, 1, __ATOMIC_ACQ_REL)) return;
  pthread_cond_destroy(&job->all_done);
  pthread_mutex_destroy(&job->lock);
  free(job);
}

static void task(void *job) {
  work(job);
  release(job);
}

/* Run all chunks. This thread works too, and waits for chunks that others have begun, but never for
   a task to start: a pool whose threads are all busy cannot hold it up. Where all leaves are small,
   the thread that hands over the next step has as much to do, and is left its core. */
static void run(Job *job, XLA_FFI_CallFrame *frame, int64_t elements, int64_t largest) {
  int64_t threads = 1;
  if (elements > CHUNK && largest > CHUNK / 4) {
    XLA_FFI_ThreadPool_NumThreads_Args asked = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
                                                NULL, frame->ctx, &threads};
    XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
    if (error) {
      XLA_FFI_Error_Destroy_Args gone = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&gone);
      threads = 1;
    }
  }
  if (threads > job->chunks) threads = job->chunks;
  for (int64_t i = 1; i < threads; i++) {
    __atomic_add_fetch(&job->references, 1, __ATOMIC_RELAXED);
    XLA_FFI_ThreadPool_Schedule_Args asked = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL,
                                              frame->ctx, task, job};
    XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&asked);
    if (error) {
      XLA_FFI_Error_Destroy_Args gone = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
      frame->api->XLA_FFI_Error_Destroy(&gone);
      release(job);
      break;
    }
  }
  work(job);
  if (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < job->chunks) {
    pthread_mutex_lock(&job->lock);
    while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < job->chunks)
      pthread_cond_wait(&job->all_done, &job->lock);
    pthread_mutex_unlock(&job->lock);
  }
}

static double combined(double a, double b, int64_t how) {
  if (how == 0) return a + b;
  if (how == 1) return a > b || a != a ? a : b;
  return a < b || a != a ? a : b;
}

/* Write what a reduction made of each leaf. `code` is 4 times how (0 sum, 1 max, 2 min), plus the
   type (0 float, 1 double, 2 bool). */
static void reduce(const Job *job, int64_t number, int64_t code, void *result) {
  for (int64_t leaf = 0; leaf < job->leaves; leaf++) {
    int64_t chunk = job->first[leaf], stop = job->first[leaf + 1];
    double total = job->partial[chunk * job->reductions + number];
    while (++chunk < stop)
      total = combined(total, job->partial[chunk * job->reductions + number], code / 4);
    switch (code % 4) {
      case 0: ((float *)result)[leaf] = (float)total; break;
      case 1: ((double *)result)[leaf] = total; break;
      default: ((uint8_t *)result)[leaf] = total != 0;
    }
  }
}

static XLA_FFI_Error *fail(XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args asked = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message,
                                     XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&asked);
}

static void *attribute(const XLA_FFI_Attrs *attributes, const char *name) {
  for (int64_t i = 0; i < attributes->size; i++) {
    const XLA_FFI_ByteSpan *own = attributes->names[i];
    if (own->len == strlen(name) && !memcmp(own->ptr, name, own->len)) return attributes->attrs[i];
  }
  return NULL;
}

static int64_t size_of(const XLA_FFI_Buffer *buffer) {
  int64_t size = 1;
  for (int64_t i = 0; i < buffer->rank; i++) size *= buffer->dims[i];
  return size;
}

XLA_FFI_Error *optlab_run(XLA_FFI_CallFrame *frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  const XLA_FFI_ByteSpan *key = attribute(&frame->attrs, "key");
  const XLA_FFI_Array *shape = attribute(&frame->attrs, "shape");
  const XLA_FFI_Array *codes = attribute(&frame->attrs, "reductions");
  const XLA_FFI_Array *constants = attribute(&frame->attrs, "constants");
  if (!key || !shape || !codes || !constants || key->len != KEY || shape->size != 5)
    return fail(frame, "optlab.native: a call without its attributes");
  const int64_t *counts = shape->data;
  int64_t leaves = counts[0], scalars = counts[1], inputs = counts[2], outputs = counts[3];
  int64_t reductions = counts[4];
  if (frame->args.size != scalars + leaves * inputs ||
      frame->rets.size != leaves * outputs + reductions)
    return fail(frame, "optlab.native: a call with another number of arrays");
  Loop *loop = find(key->ptr);
  if (!loop) return fail(frame, "optlab.native: a loop that this process has not loaded");

  int64_t chunks = 0, elements = 0, largest = 0;
  for (int64_t leaf = 0; leaf < leaves; leaf++) {
    int64_t size = size_of(frame->args.args[scalars + leaf * inputs]);
    chunks += (size + CHUNK - 1) / CHUNK;
    elements += size;
    if (size > largest) largest = size;
  }
  size_t pointers = scalars + leaves * (inputs + outputs), numbers = 2 * leaves + 1;
  Job *job = calloc(1, sizeof *job + pointers * sizeof(void *) + numbers * sizeof(int64_t) +
                           chunks * reductions * sizeof(double));
  if (!job) return fail(frame, "optlab.native: no memory for the list of the arrays");
  job->loop = loop;
  job->leaves = leaves, job->inputs = inputs, job->outputs = outputs;
  job->reductions = reductions, job->chunks = chunks, job->constants = constants->data;
  job->scalars = (void **)(job + 1);
  job->in = job->scalars + scalars;
  job->out = job->in + leaves * inputs;
  job->sizes = (int64_t *)(job->out + leaves * outputs);
  job->first = job->sizes + leaves;
  job->partial = (double *)(job->first + leaves + 1);
  for (int64_t i = 0; i < scalars + leaves * inputs; i++)
    job->scalars[i] = ((XLA_FFI_Buffer *)frame->args.args[i])->data;
  for (int64_t i = 0; i < leaves * outputs; i++)
    job->out[i] = ((XLA_FFI_Buffer *)frame->rets.rets[i])->data;
  for (int64_t leaf = 0; leaf < leaves; leaf++) {
    job->sizes[leaf] = size_of(frame->args.args[scalars + leaf * inputs]);
    job->first[leaf + 1] = job->first[leaf] + (job->sizes[leaf] + CHUNK - 1) / CHUNK;
  }
  job->references = 1;
  pthread_mutex_init(&job->lock, NULL);
  pthread_cond_init(&job->all_done, NULL);
  run(job, frame, elements, largest);
  for (int64_t i = 0; i < reductions; i++)
    reduce(job, i, ((int64_t *)codes->data)[i],
           ((XLA_FFI_Buffer *)frame->rets.rets[leaves * outputs + i])->data);
  release(job);
  return NULL;
}
