// What PyTorch asks about the device "hpu" where no library for it was linked: there is one card, and it is chosen.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::HPU> {
  c10::Device getDevice() const override { return {c10::DeviceType::HPU, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
const Guard guard;
const c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::HPU, &guard);
}  // namespace
