//! The MLP's function as an epilogue of matrix products.

#![allow(clippy::unwrap_used)]

use crate::gpu::testing;
use crate::model::Rows;
use crate::model::golden_tests::{GoldenModel, golden_models};
use crate::ops::testing::relative_error;
use crate::recipe::Recompute;
use crate::train::engine::gpu::GpuEngine;
use crate::train::engine::{Engine, Options};
use crate::train::state::Weights;

#[test]
fn the_function_in_passing_changes_gradients_by_rounding_alone_and_only_where_products_know_it() {
    let Some([gpu, _]) = testing::gpus() else { return };
    // Of gpt2's function, with a bias; gated; of another function.
    for (name, is_fused) in [("gpt2", true), ("llama", false), ("gpt2_gelu", false)] {
        let GoldenModel { model, batches, .. } =
            golden_models().into_iter().find(|golden| golden.name == name).unwrap();
        let arch = &model.config.arch;
        let run = |gelu_epilogue, recompute| {
            let options = Options { gelu_epilogue, recompute, ..Options::usual(&model.layout) };
            let mut engine = GpuEngine::new(&gpu, arch, &options, Weights::starting_at(&model.params)).unwrap();
            engine.zero_gradients();
            let loss = engine.accumulate(Rows::new(&batches[0], 1, batches[0].len()), 1.0, None, None).unwrap();
            (loss, engine.host_gradients().unwrap())
        };
        let (loss, gradients) = run(false, Recompute::None);
        let fused = run(true, Recompute::None);
        assert_eq!(fused.1 != gradients, is_fused, "{name}");
        assert!((fused.0 - loss).abs() <= 1e-3, "{name}: loss {} instead of {loss}", fused.0);
        assert!(relative_error(&fused.1, &gradients) <= 2e-2, "{name}: {}", relative_error(&fused.1, &gradients));
        assert!(run(true, Recompute::Mlp) == fused, "{name}: computed again it is another");
    }
}
