// The C interface as a C99 program sees it; needs no GPU and no driver. Prints how many checks
// passed, and fails when one did not.
#include <girih/girih.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static int passed = 0, failed = 0;

#define CHECK(condition) check((condition) != 0, #condition, __LINE__)

static void check(int right, const char* what, int line) {
  if (right) {
    ++passed;
  } else {
    ++failed;
    printf("line %d: %s\n  last error: %s\n", line, what, girih_last_error());
  }
}

static int says(const char* part) { return strstr(girih_last_error(), part) != NULL; }

// Whether a call failed with this status, and its message holds `part`.
static int refused(girih_status status, girih_status expected, const char* part) {
  if (status != expected) printf("status: %s\n", girih_status_name(status));
  return status == expected && says(part);
}

static void names_and_version(void) {
  CHECK(strcmp(girih_last_error(), "") == 0);
  CHECK(strncmp(girih_version(), "0.", 2) == 0);
  CHECK(strcmp(girih_status_name(GIRIH_OK), "ok") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_INVALID_ARGUMENT), "invalid_argument") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_UNSUPPORTED), "unsupported") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_COMPILE_FAILED), "compile_failed") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_CACHE_IO), "cache_io") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_DRIVER), "driver") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_NO_DEVICE), "no_device") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_JIT_DISABLED), "jit_disabled") == 0);
  CHECK(strcmp(girih_status_name(GIRIH_INTERNAL), "internal") == 0);
  CHECK(strcmp(girih_status_name(9), "unknown") == 0);
}

static void patterns_are_parsed(void) {
  girih_program* program = NULL;
  CHECK(girih_compile(" causal&(sink( 4 )|window(left=8))", NULL, &program) == GIRIH_OK);
  CHECK(strcmp(girih_program_text(program), "causal & (sink(4) | window(left=8))") == 0);
  girih_program_free(program);

  program = (girih_program*)&passed;  // must not survive a failure
  CHECK(refused(girih_compile("causal & windw(3)", NULL, &program), GIRIH_INVALID_ARGUMENT,
                "causal & windw(3)\n"));
  CHECK(says("^"));
  CHECK(program == NULL);
}

static void nulls_are_refused(void) {
  girih_program* program = NULL;
  girih_kernel* kernel = NULL;
  girih_problem problem = {
      .size = sizeof(problem), .dtype = GIRIH_BFLOAT16, .head_dim = 64, .num_heads = 1};
  girih_args args = {.size = sizeof(args)};
  girih_kernel_info info = {.size = sizeof(info)};
  size_t bytes = 0;
  const girih_status wrong = GIRIH_INVALID_ARGUMENT;
  CHECK(refused(girih_compile(NULL, NULL, &program), wrong, "pattern is null"));
  CHECK(refused(girih_compile("causal", NULL, NULL), wrong, "program is null"));
  CHECK(refused(girih_bind(NULL, &problem, &kernel), wrong, "program is null"));
  CHECK(refused(girih_kernel_get_info(NULL, &info), wrong, "kernel is null"));
  CHECK(refused(girih_workspace_bytes(NULL, NULL, &bytes), wrong, "kernel is null"));
  CHECK(refused(girih_workspace_bytes(NULL, NULL, NULL), wrong, "is null"));
  CHECK(refused(girih_launch(NULL, &args, NULL, 0), wrong, "kernel is null"));
  CHECK(refused(girih_attention(NULL, &args), wrong, "program is null"));
  CHECK(girih_program_text(NULL) == NULL);
  CHECK(says("program is null"));
  girih_program_free(NULL);
  girih_kernel_free(NULL);

  CHECK(girih_compile("causal", NULL, &program) == GIRIH_OK);
  CHECK(refused(girih_bind(program, NULL, &kernel), wrong, "problem is null"));
  CHECK(refused(girih_bind(program, &problem, NULL), wrong, "kernel is null"));
  CHECK(refused(girih_attention(program, NULL), wrong, "args is null"));
  CHECK(refused(girih_attention(program, &args), wrong, "q is null"));
  girih_program_free(program);
}

static void structs_may_grow(void) {
  struct {
    girih_options known;
    int64_t later;
  } newer = {.known.size = sizeof(newer)};
  girih_program* program = NULL;
  CHECK(girih_compile("causal", &newer.known, &program) == GIRIH_OK);
  girih_program_free(program);
  newer.later = 1;
  CHECK(refused(girih_compile("causal", &newer.known, &program), GIRIH_INVALID_ARGUMENT,
                "use the header that came with the library"));

  // An older caller's struct ends early: what follows is not read.
  girih_options options = {.size = offsetof(girih_options, jit), .jit = 77};
  CHECK(girih_compile("causal", &options, &program) == GIRIH_OK);
  girih_program_free(program);
  options.size = sizeof(options);
  CHECK(refused(girih_compile("causal", &options, &program), GIRIH_INVALID_ARGUMENT,
                "options.jit is 77"));
  options.size = 0;
  CHECK(refused(girih_compile("causal", &options, &program), GIRIH_INVALID_ARGUMENT,
                "set it to sizeof(girih_options)"));
}

static void bad_values_are_refused(void) {
  const girih_status wrong = GIRIH_INVALID_ARGUMENT;
  girih_program* program = NULL;
  girih_kernel* kernel = NULL;
  const girih_options options = {.size = sizeof(options), .tune = 4};
  CHECK(refused(girih_compile("causal", &options, &program), wrong, "options.tune is 4"));
  CHECK(girih_compile("causal", NULL, &program) == GIRIH_OK);

  girih_problem problem = {.size = sizeof(problem), .head_dim = 64, .num_heads = 1};
  CHECK(refused(girih_bind(program, &problem, &kernel), wrong, "problem.dtype is 0"));
  problem.dtype = GIRIH_BFLOAT16;
  problem.layout = 3;
  CHECK(refused(girih_bind(program, &problem, &kernel), wrong, "problem.layout is 3"));

  const girih_tensor tensor = {.size = sizeof(tensor),
                               .shape = {1, 2, 1, 64},
                               .stride = {128, 64, 64, 1},
                               .dtype = GIRIH_FLOAT16};
  girih_tensor odd = tensor;
  odd.dtype = 3;
  girih_args args = {
      .size = sizeof(args), .q = &tensor, .k = &tensor, .v = &tensor, .out = &tensor};
  args.v = &odd;
  CHECK(refused(girih_attention(program, &args), wrong, "v.dtype is 3"));
  args.v = &tensor;
  args.layout = -1;
  CHECK(refused(girih_attention(program, &args), wrong, "args.layout is -1"));
  args.layout = GIRIH_BSHD;
  args.given = 4;
  CHECK(refused(girih_attention(program, &args), wrong, "args.given is 0x4"));
  args.given = 0;
  args.softmax_scale = 0.5f;
  CHECK(refused(girih_attention(program, &args), wrong, "lacks GIRIH_GIVEN_SOFTMAX_SCALE"));
  args.given = GIRIH_GIVEN_SOFTMAX_SCALE;
  args.q_start = 1;
  CHECK(refused(girih_attention(program, &args), wrong, "lacks GIRIH_GIVEN_Q_START"));
  girih_program_free(program);
}

static void inputs_are_checked(void) {
  const girih_status wrong = GIRIH_INVALID_ARGUMENT;
  girih_program* program = NULL;
  CHECK(girih_compile("causal & blocks(m, q=128, kv=64) | sink($n)", NULL, &program) == GIRIH_OK);
  CHECK(strcmp(girih_program_text(program), "causal & blocks(m, q=128, kv=64) | sink($n)") == 0);
  const girih_tensor tensor = {.size = sizeof(tensor),
                               .shape = {1, 2, 1, 64},
                               .stride = {128, 64, 64, 1},
                               .dtype = GIRIH_FLOAT16};
  const int32_t some = 0;
  const girih_input right = {.size = sizeof(right),
                             .name = "m",
                             .kind = GIRIH_BLOCK_LIST,
                             .num_q_blocks = 1,
                             .num_kv_blocks = 1,
                             .indptr = &some,
                             .indices = &some,
                             .num_indices = 1};
  girih_input inputs[2] = {right, {.size = sizeof(right), .name = "n", .kind = GIRIH_HEAD_NUMBERS}};
  girih_args args = {
      .size = sizeof(args), .q = &tensor, .k = &tensor, .v = &tensor, .out = &tensor};
  args.num_inputs = -1;
  CHECK(refused(girih_attention(program, &args), wrong, "args.num_inputs is -1"));
  args.num_inputs = 2;
  CHECK(refused(girih_attention(program, &args), wrong, "args.inputs is null"));
  args.inputs = inputs;
  args.reserved = 1;
  CHECK(refused(girih_attention(program, &args), wrong, "args.reserved is 1"));
  args.reserved = 0;
  CHECK(refused(girih_attention(program, &args), GIRIH_NO_DEVICE, "CUDA"));  // nothing to refuse

  inputs[1].name = NULL;
  CHECK(refused(girih_attention(program, &args), wrong, "inputs[1].name is null"));
  inputs[1].name = "n";
  inputs[1].size = sizeof(right) + 8;
  CHECK(refused(girih_attention(program, &args), wrong, "inputs[1].size is"));
  inputs[1].size = sizeof(right);
  inputs[0].size = 0;
  CHECK(refused(girih_attention(program, &args), wrong, "set it to sizeof(girih_input)"));
  inputs[0].size = sizeof(right);
  for (int32_t kind = -1; kind <= 11; ++kind) {
    if (1 <= kind && kind <= 10) continue;
    inputs[0].kind = kind;
    CHECK(refused(girih_attention(program, &args), wrong, "inputs[0].kind is"));
    CHECK(says("GIRIH_BLOCK_LIST (1) to GIRIH_COLUMN_INTERVALS (10)"));
  }

  // What another kind has is not taken for this one's.
  inputs[0].kind = GIRIH_BLOCK_TABLE;
  CHECK(refused(girih_attention(program, &args), wrong,
                "inputs[0].indptr is set, but GIRIH_BLOCK_TABLE has none"));
  inputs[0] = right;
  inputs[0].row_stride = 3;
  CHECK(refused(girih_attention(program, &args), wrong,
                "inputs[0].row_stride is set, but GIRIH_BLOCK_LIST has none"));
  inputs[0] = right;
  inputs[1].num_q_blocks = 2;
  CHECK(refused(girih_attention(program, &args), wrong,
                "inputs[1].num_q_blocks is set, but GIRIH_HEAD_NUMBERS has none"));
  inputs[1] = (girih_input){.size = sizeof(right), .name = "n", .kind = GIRIH_VALUES, .heads = 1};
  CHECK(refused(girih_attention(program, &args), wrong,
                "inputs[1].heads is set, but GIRIH_VALUES has none"));
  inputs[1].heads = 0;
  inputs[1].type = 2;
  CHECK(refused(girih_attention(program, &args), wrong, "inputs[1].type is 2"));
  inputs[1].type = GIRIH_VALUES_INT32;
  CHECK(refused(girih_attention(program, &args), GIRIH_NO_DEVICE, "CUDA"));
  inputs[1].second_end = &some;
  CHECK(refused(girih_attention(program, &args), wrong,
                "inputs[1].second_end is set, but GIRIH_VALUES has none"));
  girih_program_free(program);

  size_t bytes = 0;
  CHECK(refused(girih_workspace_bytes(NULL, &args, &bytes), wrong, "kernel is null"));
  CHECK(refused(girih_build_lists(NULL, &args, NULL, 0, 1), wrong, "kernel is null"));
}

// This thread has made no context current, so neither machine can bind.
static void binding_needs_a_context(void) {
  girih_program* program = NULL;
  CHECK(girih_compile("causal", NULL, &program) == GIRIH_OK);
  const girih_problem problem = {
      .size = sizeof(problem), .dtype = GIRIH_BFLOAT16, .head_dim = 64, .num_heads = 1};
  girih_kernel* kernel = (girih_kernel*)&passed;
  CHECK(refused(girih_bind(program, &problem, &kernel), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(kernel == NULL);

  const girih_tensor tensor = {.size = sizeof(tensor),
                               .shape = {1, 2, 1, 64},
                               .stride = {128, 64, 64, 1},
                               .dtype = GIRIH_FLOAT16};
  const girih_args args = {.size = sizeof(args),
                           .q = &tensor,
                           .k = &tensor,
                           .v = &tensor,
                           .out = &tensor,
                           .given = GIRIH_GIVEN_SOFTMAX_SCALE | GIRIH_GIVEN_Q_START};
  CHECK(refused(girih_attention(program, &args), GIRIH_NO_DEVICE, "CUDA"));
  girih_program_free(program);
}

static void* fails_on_its_own(void* unused) {
  (void)unused;
  CHECK(strcmp(girih_last_error(), "") == 0);
  CHECK(girih_compile(NULL, NULL, NULL) == GIRIH_INVALID_ARGUMENT);
  CHECK(says("program is null"));
  return NULL;
}

static void each_thread_has_its_last_error(void) {
  girih_program* program = NULL;
  CHECK(girih_compile("nothing", NULL, &program) == GIRIH_INVALID_ARGUMENT);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, fails_on_its_own, NULL) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(says("nothing"));
}

static void parts_are_checked(void) {
  const girih_tensor tensor = {.size = sizeof(tensor),
                               .data = (void*)4096,
                               .shape = {1, 2, 1, 64},
                               .stride = {128, 64, 64, 1},
                               .dtype = GIRIH_FLOAT32};
  const girih_part part = {.size = sizeof(part), .out = &tensor, .lse = (const float*)256};
  girih_combine_args args = {.size = sizeof(args), .parts = &part, .out = &tensor, .num_parts = 1};
  CHECK(refused(girih_combine(&args), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_bind_combine(NULL), GIRIH_NO_DEVICE, "CUDA"));
  args.num_parts = 0;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "0 parts"));
  args.num_parts = -1;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "args.num_parts is -1"));
  args.num_parts = 1;
  args.reserved = 1;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "args.reserved is 1"));
  args.reserved = 0;
  args.parts = NULL;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "args.parts is null"));
  const girih_part without_out = {.size = sizeof(without_out), .lse = (const float*)256};
  args.parts = &without_out;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "parts[0].out is null"));
  girih_tensor odd = tensor;
  odd.dtype = 4;
  args.parts = &part;
  args.out = &odd;
  CHECK(refused(girih_combine(&args), GIRIH_INVALID_ARGUMENT, "out.dtype is 4"));
  CHECK(refused(girih_combine(NULL), GIRIH_INVALID_ARGUMENT, "args is null"));
}

static void estimates_are_checked(void) {
  const girih_tensor tensor = {.size = sizeof(tensor),
                               .data = (void*)4096,
                               .shape = {1, 100, 2, 64},
                               .stride = {12800, 128, 64, 1},
                               .dtype = GIRIH_BFLOAT16};
  girih_estimate_args args = {.size = sizeof(args),
                              .q = &tensor,
                              .k = &tensor,
                              .vertical = (int32_t*)256,
                              .slash = (int32_t*)512,
                              .num_vertical = 30,
                              .num_slash = 50};
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_bind_estimate(GIRIH_FLOAT16, 128, NULL), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_bind_estimate(0, 128, NULL), GIRIH_INVALID_ARGUMENT, "dtype is 0"));
  args.softmax_scale = 0.5f;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_INVALID_ARGUMENT, "args.softmax_scale is"));
  args.given = GIRIH_GIVEN_Q_START;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_INVALID_ARGUMENT, "args.given is 2"));
  args.given = GIRIH_GIVEN_SOFTMAX_SCALE;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_NO_DEVICE, "CUDA"));
  size_t bytes = 0;
  CHECK(refused(girih_estimate_workspace_bytes(&args, &bytes), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_estimate_workspace_bytes(&args, NULL), GIRIH_INVALID_ARGUMENT,
                "bytes is null"));
  const int32_t own[] = {30, 31};
  args.head_slash = own;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_NO_DEVICE, "CUDA"));
  args.head_vertical = own;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_INVALID_ARGUMENT, "head_vertical[1] is 31"));
  args.slash = NULL;
  args.head_vertical = NULL;
  CHECK(refused(girih_estimate_slashes(&args), GIRIH_INVALID_ARGUMENT, "slash is null"));
  CHECK(refused(girih_estimate_slashes(NULL), GIRIH_INVALID_ARGUMENT, "args is null"));
}

static void estimates_of_blocks_are_checked(void) {
  const girih_tensor tensor = {.size = sizeof(tensor),
                               .data = (void*)4096,
                               .shape = {1, 100, 2, 64},
                               .stride = {12800, 128, 64, 1},
                               .dtype = GIRIH_BFLOAT16};
  girih_estimate_blocks_args args = {
      .size = sizeof(args), .q = &tensor, .k = &tensor, .mask = (uint8_t*)256};
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_INVALID_ARGUMENT, "neither top_k nor"));
  args.top_k = 3;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_bind_estimate_blocks(GIRIH_FLOAT16, 128, NULL), GIRIH_NO_DEVICE, "CUDA"));
  CHECK(refused(girih_bind_estimate_blocks(0, 128, NULL), GIRIH_INVALID_ARGUMENT, "dtype is 0"));
  args.threshold = 0.5f;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_INVALID_ARGUMENT, "both top_k and threshold"));
  args.top_k = 0;
  args.stride = 16;
  args.q_block = 128;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_NO_DEVICE, "CUDA"));
  args.q_block = 32;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_INVALID_ARGUMENT, "q_block is 32"));
  args.q_block = 0;
  args.softmax_scale = 0.5f;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_INVALID_ARGUMENT, "args.softmax_scale is"));
  args.given = GIRIH_GIVEN_SOFTMAX_SCALE;
  args.mask = NULL;
  CHECK(refused(girih_estimate_blocks(&args), GIRIH_INVALID_ARGUMENT, "mask is null"));
  CHECK(refused(girih_estimate_blocks(NULL), GIRIH_INVALID_ARGUMENT, "args is null"));
}

int main(void) {
  names_and_version();
  patterns_are_parsed();
  nulls_are_refused();
  structs_may_grow();
  bad_values_are_refused();
  inputs_are_checked();
  binding_needs_a_context();
  parts_are_checked();
  estimates_are_checked();
  estimates_of_blocks_are_checked();
  each_thread_has_its_last_error();
  printf("c_api: %d checks passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
