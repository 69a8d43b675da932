// A button on every block of code: it copies the commands after `$ `, or the whole where there are none.
const words = document.documentElement.lang.startsWith("zh") ? ["复制", "已复制"] : ["copy", "copied"];
for (const block of document.querySelectorAll("div.highlight")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = words[0];
  button.addEventListener("click", async () => {
    const text = block.querySelector("pre").textContent;
    const commands = text.split("\n").filter((line) => line.startsWith("$ ")).map((line) => line.slice(2));
    await navigator.clipboard.writeText(commands.length ? commands.join("\n") + "\n" : text);
    button.textContent = words[1];
    setTimeout(() => (button.textContent = words[0]), 1500);
  });
  block.append(button);
}
