//! The functions of the chain's program that can be called on a block, as far as clients need them here.

use jsonrpsee::types::ErrorObjectOwned;
use subxt::ext::codec::{Compact, Decode, Encode};

use super::accounts::Account;
use super::block::Block;
use super::node::Node;
use super::refused::{Invalid, bad_parameters, unknown_function};

/// Calls a function of the program of a block, and returns its answer in SCALE.
pub(super) fn run(node: &Node, block: &Block, name: &str, mut arguments: &[u8]) -> Result<Vec<u8>, ErrorObjectOwned> {
    let program = &block.program;
    let wrong = |_| bad_parameters("the arguments of the function cannot be read");
    match name {
        "Core_version" => Ok(program.version_scale()),
        "Metadata_metadata" => Ok(program.metadata_v14().encode()),
        "Metadata_metadata_versions" => {
            program.formats().map(|formats| formats.encode()).ok_or_else(|| unknown_function(name))
        }
        "Metadata_metadata_at_version" if program.formats().is_some() => {
            let format = u32::decode(&mut arguments).map_err(wrong)?;
            Ok(program.metadata_in(format).encode())
        }
        "AccountNonceApi_account_nonce" => Ok(block.nonce(&Account::decode(&mut arguments).map_err(wrong)?).encode()),
        "TaggedTransactionQueue_validate_transaction" => validate(node, arguments),
        // The weight, its class, and that nothing is to be paid.
        "TransactionPaymentApi_query_info" => Ok((Compact(0_u64), Compact(0_u64), 0_u8, 0_u64).encode()),
        _ => Err(unknown_function(name)),
    }
}

/// Where a transaction comes from, itself, and the hash of a block.
fn validate(node: &Node, arguments: &[u8]) -> Result<Vec<u8>, ErrorObjectOwned> {
    const BLOCK_HASH: usize = 32;
    let len = arguments.len().saturating_sub(BLOCK_HASH);
    let bytes = arguments.get(1..len).ok_or_else(|| bad_parameters("there is no transaction"))?;
    match node.validate(bytes) {
        Ok((account, nonce)) => {
            let nothing: Vec<Vec<u8>> = Vec::new();
            let provides = vec![(account, nonce).encode()];
            let (priority, longevity, is_passed_on) = (u64::MAX, 31_u64, true);
            Ok((0_u8, priority, nothing, provides, longevity, is_passed_on).encode())
        }
        Err(error) => match Invalid::of(&error) {
            Some(invalid) => Ok((1_u8, 0_u8, invalid.number()).encode()),
            None => Err(error),
        },
    }
}
