# shellcheck shell=sh
# Sourced from the checkout's root. Shows the Vulkan loader SwiftShader besides the machine's own
# devices, where setup.sh could install it. The machine's devices stay what they are.
if [ -s .setup/swiftshader/vk_swiftshader_icd.json ]; then
  VK_ADD_DRIVER_FILES=$PWD/.setup/swiftshader/vk_swiftshader_icd.json${VK_ADD_DRIVER_FILES:+:$VK_ADD_DRIVER_FILES}
  export VK_ADD_DRIVER_FILES
fi
