//! The rows that the held-out loss is taken on, and the loss that a model without context would have there.
