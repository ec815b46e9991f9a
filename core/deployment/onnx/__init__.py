"""Exports models to ONNX with a key-value cache, and runs them under ONNX Runtime.

    export(model_dir, target, kind, *, threads) -> None
        Write the folder ``target`` (model.onnx and its weights, tokenizer, chat template, config), atomically.
        ``kind``: fp32, fp16, int8 or int4. ModelError, ConfigError (extra missing), ResourceError.
    OnnxRunner(folder, *, threads)
        .logits(ids [b, s]) -> float32 [b, s, v]; .decode_logits(ids [b, s]) -> the same, token by token with the cache;
        .generate(prompts, max_new_tokens, stop_ids) -> new ids of each prompt, greedy, left-padded batches.
    OnnxResponder(runner, chat, batch_size)
        A ``core.evaluation.evaluate.Responder``.
    verify(runner, model_dir, rows) -> (Distance of the prompt's logits, Distance of step-by-step decoding)
    benchmark(runner, ids, ...) -> OnnxBenchmark
    examine_onnx(model_dir, target, kind, ...) -> OnnxFile
        All of it for one type; what the quantize phase calls.
"""
