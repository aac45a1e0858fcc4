//! The families of models that the subnet allowed, by the names Hugging Face gives them.

use serde::{Deserialize, Serialize};

/// A `model_type` of transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Family {
    /// GPT-2.
    #[default]
    Gpt2,
    /// Mistral.
    Mistral,
    /// Llama.
    Llama,
    /// The decoder of BART.
    Bart,
    /// Falcon.
    Falcon,
    /// GPT-NeoX.
    GptNeox,
    /// GPT-J.
    Gptj,
    /// Phi.
    Phi,
    /// Gemma.
    Gemma,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Gpt2,
        Self::Mistral,
        Self::Llama,
        Self::Bart,
        Self::Falcon,
        Self::GptNeox,
        Self::Gptj,
        Self::Phi,
        Self::Gemma,
    ];

    /// The value of the key `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Mistral => "mistral",
            Self::Llama => "llama",
            Self::Bart => "bart",
            Self::Falcon => "falcon",
            Self::GptNeox => "gpt_neox",
            Self::Gptj => "gptj",
            Self::Phi => "phi",
            Self::Gemma => "gemma",
        }
    }

    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT-2",
            Self::Mistral => "Mistral",
            Self::Llama => "Llama",
            Self::Bart => "BART's decoder",
            Self::Falcon => "Falcon",
            Self::GptNeox => "GPT-NeoX",
            Self::Gptj => "GPT-J",
            Self::Phi => "Phi",
            Self::Gemma => "Gemma",
        }
    }

    /// The class that `AutoModelForCausalLM` makes of it: what validators compare with their list.
    pub fn class(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Mistral => "MistralForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Bart => "BartForCausalLM",
            Self::Falcon => "FalconForCausalLM",
            Self::GptNeox => "GPTNeoXForCausalLM",
            Self::Gptj => "GPTJForCausalLM",
            Self::Phi => "PhiForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
        }
    }

    /// Whether the MLP's hidden layer is a product of two.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral | Self::Gemma)
    }

    /// The usual width of the MLP's hidden layer: 4 times the model's; 8/3 times, a multiple of 64, if it is gated, which
    /// makes as many parameters.
    pub fn mlp_width(self, width: usize) -> usize {
        match self.is_gated() {
            true => (width.saturating_mul(8) / 3).checked_next_multiple_of(64).unwrap_or(usize::MAX),
            false => width.saturating_mul(4),
        }
    }

    /// The family of a `model_type`.
    pub fn of(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }
}
