//! The kernels as this program carries them: PTX, compiled ahead of time from `kernels/*.cu`.
